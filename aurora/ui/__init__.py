"""A page in the browser, as a client of the service."""

import os

# gradio asks for these when it is imported
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

"""The shape in which a reader will hand out the frames of a video."""

from __future__ import annotations

from aurora.errors import AuroraError

from ._clip import label, open_video


def video_shape(source: str | bytes) -> tuple[int, int]:
    """Height and width of the first frame, upright. AuroraError when it cannot be decoded."""
    with open_video(source) as (container, stream):
        stream.thread_type = "SLICE"
        frame = next(container.decode(stream), None)
        if frame is None:
            raise AuroraError(f"{label(source)} holds no frame that can be decoded")
        return (frame.width, frame.height) if frame.rotation % 180 else (frame.height, frame.width)

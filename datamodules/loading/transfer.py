"""Objects with tensors from one process to another over a Unix socket, without a copy on the receiving side.

Every object lies in memory of its own that has no name: nothing is left behind when a process is killed, and the size
of /dev/shm does not matter (64 MB in many containers).
"""

import io
import mmap
import os
import pickle
import socket
import struct
import sys
import tempfile
from typing import Any

import torch
from torch import Tensor

_HEAD = struct.Struct("<qqq")  # number, where the pickle stands, bytes in all
_ALIGN = 64


def send(line: socket.socket, number: int, item: Any) -> int:
    """Hands an object over and says how many bytes it takes."""
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(item)
    spans = []
    with os.fdopen(os.memfd_create("row"), "wb") if sys.platform == "linux" else tempfile.TemporaryFile() as file:
        for buffer in buffers:
            start = file.seek(-(-file.tell() // _ALIGN) * _ALIGN)
            file.write(buffer.raw())
            spans.append((start, file.tell()))
        end = file.tell()
        pickle.dump((spans, stream.getvalue()), file)
        file.flush()
        size = file.tell()
        socket.send_fds(line, [_HEAD.pack(number, end, size)], [file.fileno()])
    return size


def receive(line: socket.socket) -> tuple[int, Any] | None:
    """The number and the next object, whose tensors hold the shared memory; None when the other side is gone."""
    try:
        head, files, _, _ = socket.recv_fds(line, _HEAD.size, 1)
    except ConnectionResetError:
        return None
    if len(head) < _HEAD.size or not files:
        return None
    number, end, size = _HEAD.unpack(head)
    try:
        shared = mmap.mmap(files[0], size)
    finally:
        os.close(files[0])
    if sys.platform == "linux":
        shared.madvise(mmap.MADV_DONTFORK)  # a worker forked later would hold the memory for as long as it lives
    memory = memoryview(shared)
    spans, stream = pickle.loads(memory[end:])
    return number, pickle.loads(stream, buffers=[memory[start:stop] for start, stop in spans])


class _Pickler(pickle.Pickler):
    """Hands the memory of tensors out as buffers, which torch's own way does not."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.from_numpy, (value.detach().numpy(),)
        return NotImplemented

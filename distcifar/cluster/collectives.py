"""What torch's flight recorder knows of this process: the collectives that it has come to, over gloo and NCCL.

The recorder is torch's own and always on (the last 2000 collectives). Its answer is JSON of all of them, so it is asked
only when a training stands still.
"""

import json

import torch

# Private to torch, which offers no other way from within the process. Older versions have the second one only.
DUMPS = ("_dump_fr_trace_json", "_dump_nccl_trace_json")


def flight_record() -> bytes:
    """The recorder's JSON: "entries" has a collective each, oldest first. Empty where nothing was recorded."""
    for name in DUMPS:
        dump = getattr(torch._C._distributed_c10d, name, None) if torch.distributed.is_available() else None
        record = dump() if dump is not None else b""
        if json.loads(record or b"{}").get("entries"):
            return bytes(record)
    return b""


def last_collective(record: bytes) -> str:
    """The newest collective of a flight record in words, with its number; the rank may wait in it. "" for none."""
    entries = json.loads(record or b"{}").get("entries") or []
    if not entries:
        return ""
    newest = max(entries, key=lambda entry: int(entry["record_id"]))
    return f"{newest['profiling_name']} number {newest['collective_seq_id']}"

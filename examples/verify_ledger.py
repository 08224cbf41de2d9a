#!/usr/bin/env python3
"""Checks Showrunner's ledger without Showrunner: reads its rows as CSV, oldest first, and recomputes every hash."""
import csv
import hashlib
import sys

HASHED = "prev_hash id cycle_id event_type severity actor subject rule payload created_at".split()
csv.field_size_limit(1 << 30)
count, last = 0, None
for row in csv.DictReader(sys.stdin):
    digest = hashlib.sha256()
    for name in HASHED:  # NULL counts as the empty text
        text = row[name].encode()
        digest.update(len(text).to_bytes(8, "big") + text)
    if last and (int(row["id"]), row["prev_hash"]) != (int(last["id"]) + 1, last["hash"]):
        sys.exit(f"entry {row['id']} does not follow from entry {last['id']}")
    if digest.hexdigest() != row["hash"]:
        sys.exit(f"entry {row['id']} was changed after it was written")
    count, last, first = count + 1, row, last and first or row
if not last:
    sys.exit("no entries")
print(f"{count} entries fit.")
print(f"The first is {first['id']}, after the hash {first['prev_hash'] or '(none: the beginning)'}.")
print(f"The last is {last['id']}, with the hash {last['hash']}.")

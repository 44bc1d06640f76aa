"""Bulk submission: any number of tasks, in chunks, some of them in flight at a time.

- ``command``   `asg-submit`: arguments to exit code.
- ``options``   its arguments.
- ``sources``   JSONL and CSV to rows.
- ``table``     a CSV row to a task.
- ``checks``    what can be told about a task without asking the gateway.
- ``items``     keys that are the same in every run; rows to chunks.
- ``engine``    chunks to the gateway, one bad task out of its neighbours' way.
- ``many``      `submit_many`, the same for programs.
- ``journal``   chunks that are done, beside the file.
- ``report``    lines that were refused, ids of those accepted.
- ``progress``  a bar, or lines.
"""

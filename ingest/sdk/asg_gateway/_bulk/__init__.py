"""Bulk submission: any number of tasks, in chunks, several of them in flight.

- ``command``   the command `asg-submit`.
- ``options``   its arguments.
- ``text``      decodes a file.
- ``sources``   reads rows from JSONL.
- ``csv_source``  reads rows from CSV.
- ``table``     makes a task of a CSV row.
- ``items``     gives tasks keys that are the same in every run, and forms chunks.
- ``engine``    sends chunks to the service; a refused task does not affect its neighbours.
- ``transport``  the port between the engine and ``http`` and ``broker``.
- ``http``      sends chunks over HTTP.
- ``broker``    publishes chunks to RabbitMQ.
- ``many``      `submit_many`: bulk submission from Python code.
- ``journal``   records finished chunks beside the file.
- ``report``    writes refused lines, and the ids of accepted tasks.
- ``streams``   standard output and error, which may be broken.
- ``runner``    one run: counts, exit codes, messages.
- ``stops``     the sentences for a run that stops early.
- ``progress``  shows a bar, or prints lines.
"""

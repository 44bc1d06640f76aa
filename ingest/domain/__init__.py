"""What the service knows, without IO: submissions, identity, ledger entries, events, errors, ports."""

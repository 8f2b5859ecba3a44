"""Third-party code that reads what a policy wrote: in confined processes that can be killed.

`pool` runs jobs in worker processes, `worker` is such a process, `service` is what one serves.
"""

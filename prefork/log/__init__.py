"""Logs: the console log on standard error, the access log on standard output; or files.

    log.setup("info", "json")                               # the logger "prefork" and its children
    server = http.Server(access_log=log.access_logger())    # a line per request

Both carry text that clients chose, and several processes write them into one place. Hence:

- What a client sent cannot forge a line or drive a terminal: what is not printable is
  escaped (`escape`), in JSON and logfmt everything but ASCII.
- Lines of different processes do not mix: a write is whole lines, and into a pipe no more than
  PIPE_BUF (4 KiB), which the kernel keeps together. (A longer line may be mixed with others.)
- A destination that is slow, full or gone costs log lines, never requests: nothing here waits,
  none of it raises, and the number of lines lost is told when lines get through again.

Two ways lead to a destination (`output`). The console log is written at once, because its last
line matters most when the process dies; what does not go through waits in a buffer (`sink`).
The access log is written by a thread, many lines at a time (`writer`): under load that is
cheaper than a system call per line, and a disk that hangs then hangs the thread, not the loop.

The console log is the logger "prefork" and its children. No other logger is touched: what the
application logs is the application's to configure.

In the parts: `console` the formats of the console log, `formats` those of the access log,
`atoms` their language, `escape`, `output`, `sink`, `writer`; `origin` knows which worker this is.
"""

from prefork.log.access import AccessLog, access_logger
from prefork.log.console import setup
from prefork.log.escape import printable
from prefork.log.formats import AccessRecord
from prefork.log.origin import set_worker
from prefork.log.output import LogFileError, check_file, reopen
from prefork.log.sink import Sink, flush

__all__ = [
    "AccessLog",
    "AccessRecord",
    "LogFileError",
    "Sink",
    "access_logger",
    "check_file",
    "flush",
    "printable",
    "reopen",
    "set_worker",
    "setup",
]

-- What every case's script shares: an endless round over requests that were built beforehand, and the report.
--
-- wrk calls `request` for each request, so it does nothing but step through a table: the load generator must
-- not be the bottleneck. The number of distinct requests is large enough that no cache of identical bytes in
-- a server can win, and prime, so that connections do not stay in step with it.

COUNT = 10007

-- Builds `count` requests with make(i) and lets wrk send them in turn.
function cycle(count, make)
   local requests = {}
   for i = 1, count do
      requests[i] = make(i)
   end
   local i = 0
   request = function()
      i = i + 1
      if i > count then
         i = 1
      end
      return requests[i]
   end
end

-- The i-th of a sequence that looks random and is the same in every run.
function mixed(i)
   return (i * 7919 + 104729) % 99999989
end

-- One line that the bench reads; times in microseconds.
function done(summary, latency, requests)
   local errors = summary.errors
   io.write(string.format(
      "BENCH requests=%d duration=%d bytes=%d connect=%d read=%d write=%d status=%d timeout=%d p50=%d p99=%d\n",
      summary.requests, summary.duration, summary.bytes,
      errors.connect, errors.read, errors.write, errors.status, errors.timeout,
      latency:percentile(50), latency:percentile(99)))
end

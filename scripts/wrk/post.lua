-- POST /echo?n=... with a body. Arguments: its size in bytes, the number of distinct requests.
dofile("common.lua")

function init(args)
   local size, count = tonumber(args[1]), tonumber(args[2])
   local filler = string.rep("The quick brown fox jumps over the lazy dog. ", math.ceil(size / 45))
   cycle(count, function(i)
      local body = (string.format("%08d ", mixed(i)) .. filler):sub(1, size)
      return string.format(
         "POST /echo?n=%d HTTP/1.1\r\nHost: %s\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n",
         mixed(i), wrk.headers["Host"], size) .. body
   end)
end

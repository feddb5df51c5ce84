-- GET /ping?n=... with a Host line only. Arguments: how many requests to send at once (pipelining; default 1),
-- and "close" for a connection per request.
dofile("common.lua")

function init(args)
   local depth = tonumber(args[1]) or 1
   local close = args[2] == "close" and "Connection: close\r\n" or ""
   local function one(i)
      return "GET /ping?n=" .. mixed(i) .. " HTTP/1.1\r\nHost: " .. wrk.headers["Host"] .. "\r\n" .. close .. "\r\n"
   end
   cycle(COUNT, function(i)
      local batch = {}
      for k = 1, depth do
         batch[k] = one(i * depth + k)
      end
      return table.concat(batch)
   end)
end

-- GET /download?n=...
dofile("common.lua")

function init(args)
   cycle(COUNT, function(i)
      return "GET /download?n=" .. mixed(i) .. " HTTP/1.1\r\nHost: " .. wrk.headers["Host"] .. "\r\n\r\n"
   end)
end

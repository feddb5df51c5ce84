-- GET /ping?n=... with the ten header lines of a browser beside Host; four of them differ in every request.
dofile("common.lua")

function init(args)
   cycle(COUNT, function(i)
      local n = mixed(i)
      return table.concat({
         "GET /ping?n=" .. n .. " HTTP/1.1",
         "Host: " .. wrk.headers["Host"],
         "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:" .. 100 + i % 50 .. ".0) Gecko/20100101 Firefox/" .. 100 + i % 50 .. ".0",
         "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
         "Accept-Language: en-GB,en;q=0.7,fr;q=0.3",
         "Accept-Encoding: gzip, deflate, br, zstd",
         "Referer: http://www.example.org/list/" .. n % 9973,
         "Cookie: session=" .. string.format("%016x", n * 40503) .. "; theme=dark; seen=" .. i,
         "If-None-Match: \"" .. string.format("%08x", n) .. "\"",
         "Upgrade-Insecure-Requests: 1",
         "Sec-Fetch-Mode: navigate",
         "Cache-Control: max-age=0",
         "", "",
      }, "\r\n")
   end)
end

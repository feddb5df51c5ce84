-- GET /api/v1/rNNN/items/IIIIIIII: all of the routes, an id of eight digits that differs in every request.
-- Argument: the number of routes.
dofile("common.lua")

function init(args)
   local routes = tonumber(args[1])
   cycle(COUNT, function(i)
      return string.format(
         "GET /api/v1/r%03d/items/%08d HTTP/1.1\r\nHost: %s\r\nAccept: application/json\r\n\r\n",
         mixed(i) % routes, mixed(i), wrk.headers["Host"])
   end)
end

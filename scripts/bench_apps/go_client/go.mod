module prefork.bench/client

go 1.25

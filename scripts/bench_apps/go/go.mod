module prefork.bench/peer

go 1.22

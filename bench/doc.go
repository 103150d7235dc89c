// Package bench holds the ladder: one benchmark for each thing that a packet costs on its way through a tunnel, from a
// copy in memory to the full path between two real TUN devices, each in ns per packet. Read it from the top down:
//
//	go test -run '^$' -bench . ./bench
//
// Every rung is on the path of the last one, so their sum and it can be compared; PERF.md does. The packages below it are
// lab (networks out of namespaces), speedtest (the load, and the peers to compare with) and results (raw measurements).
package bench

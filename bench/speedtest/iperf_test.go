package speedtest

import "testing"

func TestParseIperf(t *testing.T) {
	for _, test := range []struct {
		text string
		want iperfLine
		ok   bool
	}{
		{"[  5]   0.00-0.10   sec  2.00 KBytes   164 Kbits/sec", iperfLine{bytes: 2048}, true},
		{"[  5][TX-C]   0.00-0.10   sec  1.00 MBytes  2.41 Gbits/sec    3   1023 KBytes       ", iperfLine{bytes: 1 << 20, retransmits: 3}, true},
		{"[ 11][TX-S]   1.00-1.00   sec  0.00 Bytes  0.00 bits/sec    0   1023 KBytes", iperfLine{backward: true}, true},
		{"[  9][RX-C]   0.00-0.10   sec   106 MBytes  8.88 Gbits/sec", iperfLine{bytes: 106 << 20, backward: true}, true},
		{"[  5]   0.00-0.10   sec  1.00 MBytes   244 Mbits/sec  0.002 ms  962/31405 (3.1%)  ", iperfLine{bytes: 1 << 20, datagrams: 31405, lost: 962}, true},
		{"[  5]   0.00-0.10   sec  1.00 MBytes   251 Mbits/sec  31410  ", iperfLine{bytes: 1 << 20, datagrams: 31410}, true},
		{"[SUM][RX-S]   0.00-0.10   sec  47.8 MBytes  3.95 Gbits/sec", iperfLine{}, false},
		{"[  5]   0.00-1.00   sec  30.5 MBytes   256 Mbits/sec  0.002 ms  4797/324993 (1.5%)  receiver", iperfLine{}, false},
		{"[ ID] Interval           Transfer     Bitrate         Jitter    Lost/Total Datagrams", iperfLine{}, false},
		{"[  5] local 127.0.0.1 port 5302 connected to 127.0.0.1 port 35461", iperfLine{}, false},
		{"[  5]   0.00-0.10   sec  -1 MBytes   251 Mbits/sec  31410  ", iperfLine{}, false},
		{"[  5]   0.00-0.10   sec  1.00 MBytes   244 Mbits/sec  0.002 ms  9/3 (300%)", iperfLine{}, false},
		{"iperf3: error - unable to connect to server", iperfLine{}, false},
		{"", iperfLine{}, false},
	} {
		if got, ok := parseIperf(test.text); got != test.want || ok != test.ok {
			t.Errorf("%q: got %+v, %v, want %+v, %v", test.text, got, ok, test.want, test.ok)
		}
	}
	// Cut anywhere, a line is read or refused.
	const whole = "[  5]   0.00-0.10   sec  1.00 MBytes   244 Mbits/sec  0.002 ms  962/31405 (3.1%)"
	for n := range whole {
		parseIperf(whole[:n])
	}
}

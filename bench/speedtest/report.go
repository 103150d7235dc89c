package speedtest

import "time"

// ReportSchema is the version of the JSON report. It grows when a field changes its meaning; new fields do not count. Until 1 round trips were in
// milliseconds (rtt_mean_ms and the like).
const ReportSchema = 2

// Report is the whole outcome of a run, the object that -json prints.
type Report struct {
	Schema   int       `json:"schema"`
	Started  time.Time `json:"started"` // UTC, RFC 3339
	Sluice   Build     `json:"sluice"`
	Machine  Machine   `json:"machine"`
	Settings Settings  `json:"settings"`
	// Programs names the file of each implementation that is a program.
	Programs map[string]string `json:"programs,omitempty"`
	// Peer is the other end of a live tunnel. Then A is this end, CPU and memory of nodes are not told, and counters are of all that the
	// nodes carried meanwhile.
	Peer    *Far     `json:"peer,omitempty"`
	Results []Result `json:"results"` // in the order in which they ran
}

// Settings are the conditions that all results share.
type Settings struct {
	DurationS float64 `json:"duration_s"` // length of one measurement, seconds
	WarmUpS   float64 `json:"warm_up_s"`  // before each, seconds
	Rounds    int     `json:"rounds"`
	OuterMTU  int     `json:"outer_mtu,omitempty"` // of the cable, bytes
	InnerMTU  int     `json:"inner_mtu"`           // of the tunnels, bytes
	Segmented bool    `json:"segmented"`           // offloads of the cable are off
	Topology  string  `json:"topology"`            // direct, nat, relay or live
	Load      string  `json:"load"`                // own or iperf3
	RTTEveryS float64 `json:"rtt_every_s"`         // interval of round-trip probes, seconds
}

// Machine is what the figures were measured on.
type Machine struct {
	OS        string `json:"os"`
	Arch      string `json:"arch"`
	Kernel    string `json:"kernel"`
	CPU       string `json:"cpu"`
	CPUs      int    `json:"cpus"`
	MemoryMiB int    `json:"memory_mib"`
	GoVersion string `json:"go_version"`
	Host      string `json:"host,omitempty"` // virtual machine or container, where it says so
	// SocketReceiveBuffer and SocketSendBuffer are what a UDP socket in the lab gets when it asks for 8 MiB, bytes, as the kernel reports it (twice
	// of what may be queued). Programs that are root on the machine itself may get more.
	SocketReceiveBuffer int `json:"socket_receive_buffer"`
	SocketSendBuffer    int `json:"socket_send_buffer"`
}

// Result is one measurement.
type Result struct {
	Case    string  `json:"case"`
	Impl    string  `json:"impl"`
	Round   int     `json:"round"`   // from 1
	Seconds float64 `json:"seconds"` // length of the window that rates are taken over

	// Rates of what arrived within the window: payload of TCP or UDP, in 1e9 bit/s; UDP packets, in 1000/s.
	GbitPerS     float64 `json:"gbit_per_s,omitempty"`
	ForwardGbit  float64 `json:"forward_gbit_per_s,omitempty"`  // tcp-bidir: A to B
	BackwardGbit float64 `json:"backward_gbit_per_s,omitempty"` // tcp-bidir: B to A
	KPPS         float64 `json:"kpps,omitempty"`
	OfferedKPPS  float64 `json:"offered_kpps,omitempty"` // what the sender sent

	// Totals of the whole measurement with warm-up and drain: payload bytes, UDP packets or probes.
	BytesSent       uint64  `json:"bytes_sent,omitempty"`
	BytesReceived   uint64  `json:"bytes_received,omitempty"`
	PacketsSent     uint64  `json:"packets_sent,omitempty"`
	PacketsReceived uint64  `json:"packets_received,omitempty"`
	LossPercent     float64 `json:"loss_percent"`              // of UDP packets or probes
	Retransmits     uint64  `json:"tcp_retransmits,omitempty"` // segments, within the window

	// Round trips, seconds.
	RTTMeanS float64 `json:"rtt_mean_s,omitempty"`
	RTTP50S  float64 `json:"rtt_p50_s,omitempty"`
	RTTP99S  float64 `json:"rtt_p99_s,omitempty"`
	RTTMaxS  float64 `json:"rtt_max_s,omitempty"`

	// CPU time within the window, seconds: user and system time of each tunnel process; user, nice, system, irq and
	// softirq time of the whole machine, load generator included; time stolen by the hypervisor.
	NodeCPUSeconds    []float64 `json:"node_cpu_s,omitempty"` // A, B
	MachineCPUSeconds float64   `json:"machine_cpu_s"`
	StolenCPUSeconds  float64   `json:"stolen_cpu_s"`
	// Gbit (1e9 bit) of received payload per CPU second: of both tunnel processes, and of the whole machine.
	GbitPerCPUSecond        float64 `json:"gbit_per_cpu_s,omitempty"`
	GbitPerMachineCPUSecond float64 `json:"gbit_per_machine_cpu_s,omitempty"`

	PeakMiB []float64 `json:"peak_mib,omitempty"` // VmHWM of each tunnel process (A, B), 2^20 bytes

	// Datagrams per run sent with UDP_SEGMENT and per run received with UDP_GRO, both nodes together, where the node counts
	// them. Acknowledgements count too.
	SegmentsPerSend    float64 `json:"segments_per_send,omitempty"`
	SegmentsPerReceive float64 `json:"segments_per_receive,omitempty"`
	// Buffers that the UDP sockets of node A really have (sock_diag), bytes as the kernel reports them.
	NodeReceiveBuffer int `json:"node_receive_buffer,omitempty"`
	NodeSendBuffer    int `json:"node_send_buffer,omitempty"`
	// Counters of each node (A, B) at its end, by name, where the node writes them.
	Counters []map[string]uint64 `json:"counters,omitempty"`
	// Of a UDP case with nodes that count: where packets were dropped that were sent and not received, and how many neither were received
	// nor are in Drops.
	Drops              []Drop `json:"drops,omitempty"`
	UnaccountedPackets *int64 `json:"unaccounted_packets,omitempty"`

	Samples []Sample `json:"samples,omitempty"` // over time
	Files   []string `json:"files,omitempty"`   // profiles written
}

// Sample is a short interval of a measurement. AtS is its end, seconds from the start of the window.
type Sample struct {
	AtS      float64 `json:"at_s"`
	GbitPerS float64 `json:"gbit_per_s,omitempty"`
	KPPS     float64 `json:"kpps,omitempty"`
	RTTS     float64 `json:"rtt_s,omitempty"` // mean of the probes sent in the interval
}

// Package doctor examines whether this machine lets a node run as fast as it could: rights, the TUN driver, offloads, socket buffers,
// queues, the network devices. It gives facts only, changes nothing that lasts, and needs no node. Package tune changes some.
package doctor

// Facts are what was found. Sizes are in bytes.
type Facts struct {
	OS      string `json:"os"`
	Kernel  string `json:"kernel"`
	Root    bool   `json:"root"`
	Admin   bool   `json:"cap_net_admin"`
	Subuser bool   `json:"user_namespace"` // root only within a user namespace
	TUN     TUN    `json:"tun"`
	UDP     UDP    `json:"udp"`
	// Filter is nftables; FilterError why not.
	Filter      bool   `json:"nftables"`
	FilterError string `json:"nftables_error,omitempty"`
	// Links are those that default routes lead to.
	Links []Link `json:"links"`
	// CorruptsSegments and CorruptsGRO: the kernel is known to, and what damages packets is switched off.
	CorruptsSegments bool `json:"kernel_corrupts_udp_segment"`
	CorruptsGRO      bool `json:"kernel_corrupts_udp_gro"`
}

// TUN is what came of a device that was made, and removed again.
type TUN struct {
	Made         bool   `json:"made"`
	Error        string `json:"error,omitempty"`
	NoDriver     bool   `json:"no_driver"`
	Permission   bool   `json:"not_permitted"`
	QueueLength  int    `json:"queue_length,omitempty"` // packets
	Superpackets bool   `json:"superpackets"`           // IFF_VNET_HDR
	TSO          bool   `json:"tso"`                    // of IPv4 and IPv6
	USO          bool   `json:"uso"`
}

// UDP is what the kernel grants to a node's sockets.
type UDP struct {
	Error         string `json:"error,omitempty"`
	Segment       bool   `json:"segment"`
	GRO           bool   `json:"gro"`
	ReceiveBuffer int    `json:"receive_buffer"`
	SendBuffer    int    `json:"send_buffer"`
	// ReceiveMost and SendMost are net.core.rmem_max and wmem_max, 0: not known. Force: this user may pass them.
	ReceiveMost int  `json:"rmem_max"`
	SendMost    int  `json:"wmem_max"`
	Force       bool `json:"force"`
}

// WantedBuffer is what a node asks for to receive into.
const WantedBuffer = 4 << 20

// Link is a network device. Pointers are nil where the device does not say.
type Link struct {
	Name          string `json:"name"`
	Driver        string `json:"driver,omitempty"`
	MTU           int    `json:"mtu"`
	QueueLength   int    `json:"queue_length"` // packets
	ReceiveQueues int    `json:"receive_queues"`
	UDPSegment    *bool  `json:"tx_udp_segmentation,omitempty"`
	GRO           *bool  `json:"rx_gro,omitempty"`
	// HashPorts: UDP flows are told apart by their ports when they are given to queues.
	HashPorts *bool `json:"hash_udp_ports,omitempty"`
}

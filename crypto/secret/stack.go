package secret

// A stack that is too small is moved, and the old one left behind as it was, which must not happen while there is something to
// hide. So what is to be scrubbed is reserved first, in the same place of the same function. The sizes are several times what
// is used: a handshake under the random source, assembly that works on several packets at once, x/crypto with one packet.
const (
	ofHandshake = 16 << 10
	ofKernel    = 4 << 10
	ofPacket    = 1 << 10
	margin      = 1 << 10 // what is reserved beyond that, for what is called by the functions here
)

// guard is the size of the frame of Do. The garbage collector moves a goroutine that uses less than a quarter of its stack to a
// smaller one, and so leaves alone one that runs under such a frame, unless its stack has four times as much.
const guard = 32 << 10

// reserve makes sure that the stack has room for a handshake.
//
//go:noinline
func reserve() {
	if never {
		takeHandshake([ofHandshake + margin]byte{})
	}
}

// scrub overwrites the stack below its caller as far as a handshake reaches, and the registers.
//
//go:noinline
func scrub() {
	var below [ofHandshake]byte
	keep(below[:])
	eraseRegisters()
}

// ReserveKernel makes sure that the stack has room for a kernel, and for ScrubKernel.
//
//go:noinline
func ReserveKernel() {
	if never {
		takeKernel([ofKernel + margin]byte{})
	}
}

// ScrubKernel overwrites the stack below its caller as far as a kernel reaches, and the registers.
//
//go:noinline
func ScrubKernel() {
	var below [ofKernel]byte
	keep(below[:])
	eraseRegisters()
}

// ReservePacket makes sure that the stack has room for x/crypto with a packet, and for ScrubPacket.
//
//go:noinline
func ReservePacket() {
	if never {
		takePacket([ofPacket + margin]byte{})
	}
}

// ScrubPacket overwrites the stack below its caller as far as x/crypto with a packet reaches, and the
// registers.
//
//go:noinline
func ScrubPacket() {
	var below [ofPacket]byte
	keep(below[:])
	eraseRegisters()
}

// never is false, but the compiler does not know: a function that could pass an argument has room for it in its frame, which
// costs a comparison and no clearing.
var never bool

//go:noinline
func takeGuard(b [guard]byte) { keep(b[:]) }

//go:noinline
func takeHandshake(b [ofHandshake + margin]byte) { keep(b[:]) }

//go:noinline
func takeKernel(b [ofKernel + margin]byte) { keep(b[:]) }

//go:noinline
func takePacket(b [ofPacket + margin]byte) { keep(b[:]) }

// keep makes the compiler believe that somebody reads b, so that it is really cleared.
//
//go:noinline
func keep(b []byte) { _ = b }

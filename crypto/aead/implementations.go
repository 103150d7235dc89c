package aead

// Features narrows what New may use of the processor. The zero value allows everything the machine has; the package
// reads no environment, so a switch for people (an environment variable, a flag) belongs to whoever composes the program.
type Features struct {
	// NoAVX512 leaves out the multi-packet AVX-512 implementation.
	NoAVX512 bool
}

// Implementation is one way to seal and open, by name, so that tests and benchmarks can run each and skip loudly those
// that this machine lacks.
type Implementation struct {
	// Name is "generic" or the instruction set in lower case.
	Name string
	// New returns a Cipher of this implementation; it copies the key. Only callable where Available is true.
	New func(key *[KeySize]byte) Cipher
	// Available says whether this build and this processor can run it.
	Available bool
}

// Implementations lists every implementation known to this package, fastest first, also those that are not available
// here. The last one is the generic one and always available.
func Implementations() []Implementation {
	return []Implementation{
		{Name: "avx512", New: newAVX512, Available: hasAVX512()},
		{Name: "generic", New: NewGeneric, Available: true},
	}
}

// New returns the fastest Cipher that the machine has. It copies the key, which stays the caller's.
func New(key *[KeySize]byte) Cipher { return NewWith(key, Features{}) }

// NewWith is New with less of the processor allowed.
func NewWith(key *[KeySize]byte, allowed Features) Cipher {
	if !allowed.NoAVX512 && hasAVX512() {
		return newAVX512(key)
	}
	return NewGeneric(key)
}

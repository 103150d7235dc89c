package crypto

import "filippo.io/edwards25519/field"

// basePoint is the u coordinate of the base point of Curve25519 (RFC 7748, section 4.1).
var basePoint = [keySize]byte{9}

// x25519 sets shared to the function X25519 of RFC 7748, section 5, of a private key, clamped or not, and a point. It is
// here because crypto/ecdh keeps copies of private keys and results on the heap, where nobody can overwrite them. This one
// has what it computes with on the stack alone; call it under secret.Do. It takes the same time whatever the key. False:
// the result is zero, as points of low order make it.
func x25519(shared, private *[keySize]byte, point []byte) bool {
	var x1, x2, z2, x3, z3 field.Element
	if _, err := x1.SetBytes(point); err != nil {
		return false // impossible: points have their length
	}
	x2.One()
	x3.Set(&x1)
	z3.One()
	swapped := 0
	for i := 254; i >= 0; i-- {
		bit := scalarBit(private, i)
		x2.Swap(&x3, swapped^bit)
		z2.Swap(&z3, swapped^bit)
		swapped = bit
		ladderStep(&x1, &x2, &z2, &x3, &z3)
	}
	x2.Swap(&x3, swapped)
	z2.Swap(&z3, swapped)
	z2.Invert(&z2)
	x2.Multiply(&x2, &z2)
	copy(shared[:], x2.Bytes())
	return !isZero(shared)
}

// scalarBit returns a bit of the clamped scalar (RFC 7748, section 5, decodeScalar25519), so that the scalar is not copied.
func scalarBit(private *[keySize]byte, i int) int {
	switch {
	case i < 3:
		return 0
	case i == 254:
		return 1
	}
	return int(private[i/8]>>(i%8)) & 1
}

// ladderStep doubles the point x2:z2 and adds x3:z3 to it; their difference is x1. The names are those of RFC 7748,
// section 5.
func ladderStep(x1, x2, z2, x3, z3 *field.Element) {
	var a, b, c, d, e, da, cb field.Element
	a.Add(x2, z2)
	b.Subtract(x2, z2)
	c.Add(x3, z3)
	d.Subtract(x3, z3)
	da.Multiply(&d, &a)
	cb.Multiply(&c, &b)
	x3.Square(x3.Add(&da, &cb))
	z3.Multiply(x1, z3.Square(z3.Subtract(&da, &cb)))
	a.Square(&a)
	b.Square(&b)
	e.Subtract(&a, &b)
	x2.Multiply(&a, &b)
	z2.Mult32(&e, 121665)
	z2.Multiply(&e, z2.Add(z2, &a))
}

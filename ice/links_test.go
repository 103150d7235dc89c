//go:build !soak

package ice

// realLinks is how many connections TestManyRealLinks makes.
const realLinks = 25

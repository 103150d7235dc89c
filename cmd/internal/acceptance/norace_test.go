//go:build !race && linux

package acceptance

const race = false

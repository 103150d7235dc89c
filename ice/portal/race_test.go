//go:build race

package portal

const race = true

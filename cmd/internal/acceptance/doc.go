// Package acceptance has tests only: a portal, gateways and clients as a user would run them, as processes in a network of
// namespaces with NATs, cut cables and dead relays. What they print and what is in their logs is what is tested.
package acceptance

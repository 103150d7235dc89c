// Package link decides about connections: when a peer is tried, what its connection is worth, and when it is over.
//
// A link ([Links], a pipeline.Connector) keeps what there is of one named peer beside its WireGuard core, and runs on the pipeline's
// control goroutine. It is sans-IO: inputs note what happened, HandleView draws the conclusions, Poll says what control is to do, a
// [Request] what the connectivity edge is to do, and NextTimeout when to look again, and what for.
package link

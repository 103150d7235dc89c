// Package secret keeps the copies of keys that computing with them makes from outliving the computation.
//
// Keys that are ours to overwrite are overwritten by those who own them. What is left are the copies nobody owns: arguments
// passed by value, spilled registers and scratch memory on the stack, of our functions and of those they call. A Go stack
// is not cleared when a function returns, so they would stay until something else happens to be written there.
package secret

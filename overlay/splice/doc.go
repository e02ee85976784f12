// Package splice joins two connections into one: what either end says reaches
// the other, byte for byte, and so does how it ends.
//
// An end that says that it will send no more (a FIN) is told to the other end as
// just that, and the other direction goes on. A connection that is torn, by a
// reset or because its time is over, tears the other one: an end that has been
// promised bytes does not take the loss of the rest for their end.
//
// Where both are sockets of the kernel, the bytes do not pass this process:
// package io finds splice(2) by itself, so Join hands it the connections as they
// are.
//
// A Flow does the same for datagrams, which have no end: it is over when none passed
// for two minutes, or when one side is gone. Accept takes in the connections that
// are to be joined.
package splice

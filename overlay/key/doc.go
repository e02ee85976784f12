// Package key holds the keys of overlayd: types that compare safely and never
// print themselves.
//
// There are three kinds. A [Machine] key (Ed25519) is what a node is: it signs
// the tokens that a node shows to its coordinator, and never leaves the machine
// it was made on. A [Private] key (X25519) is what WireGuard uses; it is apart
// from the machine key so that it can be replaced. A [Secret] is 32 random
// bytes that two parties share: an invite's, a relay's, a session's.
//
// Every type that holds a secret prints a fixed word under every fmt verb, in
// slog and in JSON, and cannot be compared with ==. Its bytes leave by one
// method, Expose, so that every place that handles them is found by searching
// for that word. Errors about secrets never quote the input.
package key

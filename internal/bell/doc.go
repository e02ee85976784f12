// Package bell waits for a descriptor that the runtime's poller does not know.
//
// The runtime watches the descriptors it knows all the time: whatever comes
// wakes a thread, also while the reader is at work and would find it by itself.
// On a busy tunnel that is several thousand context switches a second for
// nothing, a tenth of the processor time. A [Bell] puts an epoll instance in
// between, which the runtime watches, and which watches the descriptor only
// while somebody waits.
//
// Only Linux has it.
package bell

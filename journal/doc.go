// Package journal keeps what cannot be derived again: values of this machine
// that overlayd changed, noted on disk before the change.
//
// A note is durable when [Journal.Note] returns, so that a value is never
// changed without its old one being known, whatever happens next. A note holds
// for one boot of one machine and one network namespace, because the values do:
// notes of an earlier boot are dropped, and those of another namespace are kept
// but not shown.
//
// A journal that cannot be read is never overwritten: [Open] names the file and
// says what to do.
package journal

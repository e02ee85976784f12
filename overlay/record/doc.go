// Package record keeps what happened: values, one JSON object a line, in files
// that are rotated by size.
//
// Append never blocks and never fails: what does not fit into the queue is
// dropped and counted. What cannot be written, because the disk is full for
// instance, waits and is tried again every second, as much of it as the queue holds;
// the rest is dropped and counted, too. Status tells of both. So traffic never waits
// for its record.
//
// The newest lines of the record NAME are in NAME.jsonl, older ones in
// NAME.1.jsonl and so on; the oldest file goes when there would be more than
// Options.Keep of them.
//
// # The chain
//
// With Options.Chain a line begins with two more fields:
//
//	seq   its number, from 1
//	prev  the SHA-256 of the line before, without its newline, in hexadecimal;
//	      64 zeros in the first of all
//
// and NAME.head holds the number and the hash of the last line, with the number
// of the first that was not yet rotated away. Lines are on the disk before the
// head names them. Verify finds a line that was changed, taken out, put in or
// moved, at the ends too; VerifyCopy does so in a copy. Who may write all these
// files can make a new chain: against that, keep a copy of NAME.head elsewhere,
// which VerifyCopy compares with.
package record

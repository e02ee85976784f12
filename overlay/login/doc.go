// Package login checks that somebody is who a name says: by a password, of which
// a hash is kept, and by a code that changes every half minute.
//
// A password's hash is argon2id (RFC 9106), written with its parameters in the
// form of the PHC, so that they can grow. A code is a TOTP (RFC 6238) as every
// authenticator app makes it: SHA-1, six digits, thirty seconds. Nothing here
// keeps state, and time is an argument: whoever asks remembers which code was used
// last, and how often somebody was wrong.
package login

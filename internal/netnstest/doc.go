// Package netnstest lets a test change a kernel's network without changing this
// machine's.
package netnstest

// Package routing makes a machine's addresses, routes, rules and forwarding
// match a [State], and puts back what it found.
package routing

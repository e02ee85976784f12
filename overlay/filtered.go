//go:build !unfiltered

package overlay

// unfiltered would leave the filter out of the way of packets. It is no
// variable, so that nothing at run time can.
const unfiltered = false

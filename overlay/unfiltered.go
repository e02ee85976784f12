//go:build unfiltered

package overlay

// unfiltered is true only with the tag "unfiltered", which `make bench` sets
// for the binary that it compares with: packets pass by the filter, whatever
// the policy says.
const unfiltered = true

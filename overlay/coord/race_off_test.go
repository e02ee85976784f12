//go:build !race

package coord

// raceEnabled: the race detector makes everything ten times as slow.
const raceEnabled = false

//go:build race

package tunnel

// raceDetector is on: sync.Pool then forgets now and then what it was given.
const raceDetector = true

//go:build !linux

package journal

// dirSyncOptional: Windows cannot sync a directory.
const dirSyncOptional = true

// scope returns nothing: there is one network, and notes are kept across boots.
func scope() (boot, netns string) { return "", "" }

package nat

import "slices"

// memory is a Journal in memory.
type memory struct{ notes []note }

type note struct{ kind, key, old, new string }

func (m *memory) find(kind, key string) int {
	return slices.IndexFunc(m.notes, func(n note) bool { return n.kind == kind && n.key == key })
}

func (m *memory) Note(kind, key, old, new string) error {
	if i := m.find(kind, key); i >= 0 {
		m.notes[i].new = new
	} else {
		m.notes = append(m.notes, note{kind, key, old, new})
	}
	return nil
}

func (m *memory) Noted(kind, key string) (old, new string, ok bool) {
	if i := m.find(kind, key); i >= 0 {
		return m.notes[i].old, m.notes[i].new, true
	}
	return "", "", false
}

func (m *memory) Keys(kind string) (keys []string) {
	for _, n := range m.notes {
		keys = append(keys, n.key)
	}
	return keys
}

func (m *memory) Forget(kind, key string) error {
	if i := m.find(kind, key); i >= 0 {
		m.notes = slices.Delete(m.notes, i, i+1)
	}
	return nil
}

package fleet

// Len returns how many devices have a record. It walks the index: for metrics and the
// start-up line, not for every packet.
func (f *Fleet) Len() int {
	n := 0
	f.index.Range(func(any, any) bool { n++; return true })
	return n
}

package broker

import "sync/atomic"

// counter is a total that many connections count up at once, each on a line of the
// processor's cache that is mostly its own: with one line for all, two cores would
// spend more on it than on finding the receivers of a message.
type counter struct {
	shards [counterShards]struct {
		atomic.Uint64
		_ [56]byte
	}
}

// counterShards is a power of two.
const counterShards = 16

// add counts for a connection, which always gives the same number.
func (n *counter) add(connection uint32, d uint64) {
	n.shards[connection%counterShards].Add(d)
}

func (n *counter) load() (sum uint64) {
	for i := range n.shards {
		sum += n.shards[i].Load()
	}
	return sum
}

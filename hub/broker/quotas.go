package broker

// Quotas bound what one identity can make the hub hold. Zero values mean the
// defaults. What is beyond a quota is counted in Stats.
type Quotas struct {
	// QueuedMessages and QueuedBytes bound what waits for one session. A message
	// beyond is not queued for it (the newest is dropped); others still get it.
	// 0: 10,000 for a device, 60,000 for a service; 64 MiB.
	QueuedMessages int
	QueuedBytes    int64
	// TotalBytes bounds what waits for all sessions together. A message beyond is not
	// queued for sessions without connection. 0: 1 GiB.
	TotalBytes int64
	// Subscriptions of one session; one beyond is refused with 0x97. 0: 256.
	Subscriptions int
	// Sessions of one service, each under a client identifier of its own; a CONNECT for one
	// more is refused with 0x97. 0: 1,024.
	Sessions int
	// Inflight messages to one client at a time, if its Receive Maximum isn't less; the
	// others wait in its queue. 0: 256.
	Inflight int
	// ReceiveMaximum is how many QoS 1 and 2 messages a client may have unacknowledged.
	// A version 5.0 client that sends more is disconnected with 0x93
	// [MQTT-3.3.4-8]; others wait. 0: 1,024.
	ReceiveMaximum int
	// PublishRate is how many messages a client may send per second, on average over
	// ten. Beyond it its connection is read more slowly. 0: 20,000.
	PublishRate int
}

const (
	deviceQueue      = 10_000
	serviceQueue     = 60_000 // below 65,535: each has a packet identifier
	maxQueue         = 65_000
	topicAliases     = 32      // that a client may have at a time, in either direction
	pendingBytes     = 4 << 20 // of one connection's messages on their way to the disk
	rateWindow       = 10      // seconds over which the rate is averaged
	maxIncomingExtra = 1024
)

func (q *Quotas) setDefaults() {
	for _, d := range []struct {
		field *int
		value int
	}{{&q.Subscriptions, 256}, {&q.Inflight, 256}, {&q.Sessions, 1024}, {&q.ReceiveMaximum, 1024}, {&q.PublishRate, 20_000}} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	q.QueuedMessages = min(q.QueuedMessages, maxQueue)
	if q.QueuedBytes <= 0 {
		q.QueuedBytes = 64 << 20
	}
	if q.TotalBytes <= 0 {
		q.TotalBytes = 1 << 30
	}
}

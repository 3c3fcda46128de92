package consumer

import (
	"encoding/json"
	"time"
	"unicode/utf8"
)

// Message is one message that a device sent.
type Message struct {
	Position Position  // in the journal
	Time     time.Time // when the hub accepted it
	Topic    string
	Payload  []byte
	QoS      byte // as it was published
	Retain   bool // likewise
	Device   string
}

// messageJSON is a Message in JSON: a payload that is text stays readable.
type messageJSON struct {
	Position Position  `json:"position"`
	Time     time.Time `json:"time"`
	Device   string    `json:"device"`
	Topic    string    `json:"topic"`
	Payload  *string   `json:"payload,omitempty"`
	Binary   []byte    `json:"payload_base64,omitempty"`
	QoS      byte      `json:"qos"`
	Retain   bool      `json:"retain,omitempty"`
}

// MarshalJSON writes the payload as text if it is UTF-8, else as base64. The same message is the same bytes each time.
func (m Message) MarshalJSON() ([]byte, error) {
	j := messageJSON{Position: m.Position, Time: m.Time.UTC(), Device: m.Device, Topic: m.Topic, QoS: m.QoS, Retain: m.Retain}
	if utf8.Valid(m.Payload) {
		text := string(m.Payload)
		j.Payload = &text
	} else {
		j.Binary = m.Payload
	}
	return json.Marshal(j)
}

// UnmarshalJSON reads what MarshalJSON writes.
func (m *Message) UnmarshalJSON(data []byte) error {
	var j messageJSON
	if err := json.Unmarshal(data, &j); err != nil {
		return err
	}
	*m = Message{Position: j.Position, Time: j.Time, Topic: j.Topic, Payload: j.Binary, QoS: j.QoS, Retain: j.Retain, Device: j.Device}
	if j.Payload != nil {
		m.Payload = []byte(*j.Payload)
	}
	return nil
}

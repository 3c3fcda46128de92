package listener

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"errors"
	"io"
	"os"
	"time"
)

// maxHandshake bounds what a peer may send in a handshake: a ClientHello or two, its
// chain and its proof, of which ours have 2 KB. crypto/tls would take and parse a
// quarter of a megabyte of certificates.
const maxHandshake = 32 << 10

// turn is a connection's part in the lanes while its handshake lasts. All of a
// handshake's work lies between two reads, so the right to compute is handed on while a
// read waits: a peer that is far away or says nothing occupies no core.
//
// It belongs to the handshake's goroutine.
type turn struct {
	lanes    *lanes
	raw      *rawConn
	done     <-chan struct{}
	deadline time.Time // of the wait for the first turn, then of the handshake

	came      lane // through which it began
	waited    bool // for its first turn
	computing bool // has the right to
	ticketed  bool // came through the lane of resumed ones, without having shown that it is one
	unread    []byte
	budget    int // bytes that may still be read
	identity  []byte
	session   *tls.SessionState // of identity
	err       error             // why the listener ended the handshake; crypto/tls keeps the words only
}

// enter waits in that lane.
func (t *turn) enter(in lane, deadline time.Time) (waited bool, err error) {
	waited, err = t.lanes.enter(in, deadline, t.done)
	t.computing = err == nil
	return waited, err
}

// await hands the right to compute on and has the lane know that the peer's answer is
// what this handshake waits for.
func (t *turn) await() *answer {
	if !t.computing {
		return nil
	}
	t.computing = false
	return t.lanes.await(t.came)
}

func (t *turn) leave() {
	if t.computing {
		t.computing = false
		t.lanes.leave()
	}
}

// begin waits for the handshake's first turn.
func (t *turn) begin() error {
	in := laneFull
	if t.session != nil {
		in, t.ticketed = laneResumed, true
	}
	t.came = in
	var err error
	if t.waited, err = t.enter(in, t.deadline); t.waited {
		t.session = nil // the ticket may have been dropped meanwhile: it is opened again
	}
	return err
}

// read is what crypto/tls reads with during the handshake.
func (t *turn) read(p []byte) (int, error) {
	if len(t.unread) > 0 {
		n := copy(p, t.unread)
		t.unread = t.unread[n:]
		return n, nil
	}
	a := t.await()
	n, err := t.raw.receive(p)
	t.lanes.answered(a)
	if t.budget -= n; t.budget < 0 {
		t.err = errTooLarge
		return 0, t.err
	}
	if err != nil {
		return n, err
	}
	if _, err := t.enter(laneBegun, t.deadline); err != nil {
		if errors.Is(err, errQueueTimeout) {
			err = os.ErrDeadlineExceeded
		}
		t.err = err
		return 0, err
	}
	return n, nil
}

// unwrapped returns the session of that ticket, if it was opened a moment ago.
func (t *turn) unwrapped(identity []byte) (*tls.SessionState, bool) {
	if t == nil || t.session == nil || !bytes.Equal(identity, t.identity) {
		return nil, false
	}
	return t.session, true
}

// prove is called before the hub signs, as it does in full handshakes alone. A
// connection that came as a resumed one queues up with the full ones now.
func (t *turn) prove() error {
	if t == nil || !t.ticketed {
		return nil
	}
	t.ticketed = false
	t.leave()
	t.came = laneFull
	if _, err := t.enter(laneFull, t.deadline); err != nil {
		t.err = err
		return err
	}
	return nil
}

// lateSigner is the hub's key for a connection that says it needs no signature.
type lateSigner struct {
	crypto.Signer
	turn *turn
}

// Sign implements crypto.Signer.
func (s lateSigner) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := s.turn.prove(); err != nil {
		return nil, err
	}
	return s.Signer.Sign(rand, digest, opts)
}

// late returns cert with a lateSigner in it.
func (t *turn) late(cert *tls.Certificate) *tls.Certificate {
	key, ok := cert.PrivateKey.(crypto.Signer)
	if !ok {
		return cert
	}
	c := *cert
	c.PrivateKey = lateSigner{key, t}
	return &c
}

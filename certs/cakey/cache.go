package cakey

import (
	"crypto"
	"crypto/sha256"
	"fmt"
	"sync"
	"time"
)

// failurePause is how long a file that didn't open is not tried again: each try costs what
// a passphrase's guess costs, or a TPM's time.
const failurePause = 10 * time.Second

// Cache opens keys through Opener and keeps them open, since opening one takes much of
// a second and a passphrase. It reads the file at every Open: a key whose file is gone is
// gone here, and one whose file has changed is opened again. So call Open for each use,
// and keep no key.
//
// It is safe for concurrent use. Of many that ask for one key, one opens it and the others
// wait; nobody waits for another key.
type Cache struct {
	Opener Opener
	Now    func() time.Time // nil: time.Now

	mu   sync.Mutex          // guards open
	open map[string]*opening // by path
}

// opening is one file's key, or the wait for it. Its fields but sum may be read once done
// is closed, by whoever began it.
type opening struct {
	sum  [sha256.Size]byte // of the file
	done chan struct{}

	key crypto.Signer
	err error
	at  time.Time // of the error
}

// Open returns the key whose file is at path, as Opener.Open does. An error other than of
// reading the file is repeated for ten seconds before it is tried again, unless the file
// changes.
func (c *Cache) Open(path string) (crypto.Signer, error) {
	data, err := read(path)
	if err != nil {
		c.forget(path)
		return nil, err
	}
	defer clear(data)
	o, begun := c.find(path, sha256.Sum256(data))
	if begun {
		c.begin(o, path, data)
	}
	<-o.done
	return o.key, o.err
}

// begin does an opening. Whatever becomes of it, those who wait for it go on.
func (c *Cache) begin(o *opening, path string, data []byte) {
	o.err = fmt.Errorf("%s was not opened: whoever began it has ended", path)
	defer func() {
		o.at = c.now()
		close(o.done)
	}()
	o.key, o.err = c.Opener.open(path, data)
}

// Forget closes all keys: the next Open opens its key anew, and tries what has failed. A
// token that was taken out and put back needs that.
func (c *Cache) Forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.open)
}

func (c *Cache) forget(path string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, path)
}

// find returns the opening of that path and contents, and whether the caller is to do it.
func (c *Cache) find(path string, sum [sha256.Size]byte) (o *opening, begun bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if o := c.open[path]; o != nil && o.sum == sum && !c.stale(o) {
		return o, false
	}
	if c.open == nil {
		c.open = make(map[string]*opening)
	}
	o = &opening{sum: sum, done: make(chan struct{})}
	c.open[path] = o
	return o, true
}

// stale reports whether an opening has failed long enough ago to be tried again.
func (c *Cache) stale(o *opening) bool {
	select {
	case <-o.done:
	default:
		return false
	}
	since := c.now().Sub(o.at)
	return o.err != nil && (since >= failurePause || since < 0) // a clock that was set back
}

func (c *Cache) now() time.Time {
	if c.Now == nil {
		return time.Now()
	}
	return c.Now()
}

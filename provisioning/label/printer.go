package label

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fleethub/fleethub/certs/pemfile"
)

// printTimeout bounds the sending of one label. A printer without paper stops reading
// when its memory is full.
const printTimeout = 10 * time.Second

// Target is where labels go: the raw socket of a printer (port 9100 by custom), or a
// file or folder.
type Target struct {
	Address string // host:port of a printer's raw socket; "": Path
	Path    string // a file; of a folder, the file ID.png, ID.svg or ID.zpl in it
	Format  Format
}

// ParseTarget reads a target: tcp://HOST[:PORT], or the path of a file or folder. With
// no format a printer gets ZPL, and a path what its ending says, else PNG.
func ParseTarget(text string, format Format) (Target, error) {
	if format != "" && !format.Valid() {
		return Target{}, fmt.Errorf("%.20q is no format of labels: there are png, svg and zpl", format)
	}
	if address, ok := strings.CutPrefix(text, "tcp://"); ok {
		if _, _, err := net.SplitHostPort(address); err != nil {
			address = net.JoinHostPort(strings.Trim(address, "[]"), "9100")
		}
		if host, port, err := net.SplitHostPort(address); err != nil || host == "" || port == "" {
			return Target{}, fmt.Errorf("%.80q is no printer's address: give tcp://HOST or tcp://HOST:PORT", text)
		}
		if format == "" {
			format = ZPL
		}
		return Target{Address: address, Format: format}, nil
	}
	if text == "" {
		return Target{}, errors.New("name a printer (tcp://HOST), a file or a folder for the label")
	}
	if format == "" {
		if format = Format(strings.TrimPrefix(strings.ToLower(filepath.Ext(text)), ".")); !format.Valid() {
			format = PNG
		}
	}
	return Target{Path: text, Format: format}, nil
}

// Send brings the label to the target: with the last byte taken by the printer, or
// durable in the file, which is replaced. Whether paper came out nobody knows.
func (t Target) Send(ctx context.Context, l *Label) error {
	var out bytes.Buffer
	if err := l.Write(&out, t.Format); err != nil {
		return err
	}
	if t.Address == "" {
		return t.write(l, out.Bytes())
	}
	ctx, cancel := context.WithTimeout(ctx, printTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", t.Address)
	if err != nil {
		return fmt.Errorf("the label of %s was not printed (%w): is the printer on, and its address right?", l.id, err)
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	_, err = conn.Write(out.Bytes())
	if err := errors.Join(err, conn.Close()); err != nil {
		return fmt.Errorf("the label of %s was not printed (%w): does the printer have paper?", l.id, err)
	}
	return nil
}

func (t Target) write(l *Label, data []byte) error {
	path := t.Path
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		path = filepath.Join(path, l.id+"."+string(t.Format))
	} else if err == nil && !info.Mode().IsRegular() { // such as /dev/usb/lp0
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return fmt.Errorf("the label of %s was not printed: %w", l.id, err)
		}
		_, err = f.Write(data)
		return errors.Join(err, f.Close())
	}
	return pemfile.Write(path, data, 0o644)
}

// Holds returns an error if the target would have each of so many labels replace the one
// before.
func (t Target) Holds(labels int) error {
	if t.Address != "" || labels < 2 {
		return nil
	}
	if info, err := os.Stat(t.Path); err == nil && (info.IsDir() || !info.Mode().IsRegular()) {
		return nil
	}
	return fmt.Errorf("%s is a file for one label: name a folder that exists, or a printer", t.Path)
}

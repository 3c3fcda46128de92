package admin

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/coreos/go-oidc/v3/oidc"
)

// OIDC says whose tokens are good instead of an operator's certificate. Issuer, Audience,
// RoleClaim and Roles are required.
type OIDC struct {
	Issuer    string          // an https URL, as the provider writes it; its discovery document names its keys
	Audience  string          // that a token must be for: the hub's client ID at the provider
	RoleClaim string          // whose value, or one of whose values, is in Roles; a.b is b inside a, if there is no claim a.b
	Roles     map[string]Role // of the claim's values; whose token has none of them is nobody here
	NameClaim string          // what a person is called in messages; empty: sub

	Roots *x509.CertPool   // who vouches for the provider; nil: the machine's list
	Now   func() time.Time // nil: time.Now
}

// Limits of what is asked of a provider.
const (
	providerTimeout = 5 * time.Second
	maxProviderBody = 1 << 20
	keysLifetime    = 5 * time.Minute  // a key that the provider has taken back is good no longer
	fetchInterval   = 10 * time.Second // between two requests for the same, whatever keys tokens name
)

// maxToken bounds a token, in octets. maxSubject is OpenID Connect Core §2's bound of sub.
const (
	maxToken   = 12 << 10
	maxSubject = 255
	maxName    = 64
)

// errProvider is in the chain of the error of a token that can't be judged, because the
// provider can't be asked.
var errProvider = errors.New("the OpenID provider can't be asked")

// signingAlgorithms are those that a token may be signed by: with a key pair. A token without
// a signature, or one by a shared secret, is none.
func signingAlgorithms() []string {
	return []string{
		oidc.ES256, oidc.ES384, oidc.ES512, oidc.EdDSA,
		oidc.PS256, oidc.PS384, oidc.PS512, oidc.RS256, oidc.RS384, oidc.RS512,
	}
}

// Tokens verifies the tokens of one OpenID provider. It asks the provider for its keys when
// the first token comes, and again when they are five minutes old or a token names
// another, and refuses every token while it can't. It is safe for concurrent use.
type Tokens struct {
	config OIDC
	client *http.Client
	ask    *frugal // of the client

	// asking holds one token: whoever takes it may ask the provider and touch what follows. It
	// is a channel since a caller must be able to give up waiting for a network.
	asking chan struct{}
	keys   oidc.KeySet
	asOf   time.Time
}

// NewTokens checks a configuration. It asks nobody: a hub must start without its provider.
func NewTokens(config OIDC) (*Tokens, error) {
	u, err := url.Parse(config.Issuer)
	switch {
	case err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return nil, fmt.Errorf("oidc.issuer: %.200q is no URL such as https://login.example/realm", config.Issuer)
	case config.Audience == "":
		return nil, errors.New("oidc.audience: name the client ID that the provider has given the hub; a token for another service must not open this one")
	case config.RoleClaim == "":
		return nil, errors.New("oidc.role_claim: name the claim that says what an operator may do")
	case len(config.Roles) == 0:
		return nil, errors.New("oidc.roles: say which value of the claim makes a viewer, an operator or an admin")
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{RootCAs: config.Roots, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2: true, MaxIdleConns: 2, IdleConnTimeout: time.Minute, TLSHandshakeTimeout: providerTimeout,
	}
	ask := &frugal{next: transport, now: config.Now, asked: make(map[string]time.Time)}
	return &Tokens{
		config: config, asking: make(chan struct{}, 1), ask: ask,
		client: &http.Client{
			Transport:     ask,
			Timeout:       providerTimeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// Close closes idle connections to the provider.
func (t *Tokens) Close() { t.client.CloseIdleConnections() }

// bearer is whom a token is about.
type bearer struct {
	subject string
	name    string
	role    Role
}

// verify judges a token: its signature, issuer, audience and time, and then the role that it
// gives. Its error says what is wrong and has nothing of the token but its claims; it matches
// errProvider if the token can't be judged.
func (t *Tokens) verify(ctx context.Context, raw string) (bearer, error) {
	if len(raw) > maxToken {
		return bearer{}, fmt.Errorf("it has more than %d octets", maxToken)
	}
	keys, err := t.provider(ctx)
	if err != nil {
		return bearer{}, err
	}
	probe := &probe{KeySet: keys}
	verifier := oidc.NewVerifier(t.config.Issuer, probe, &oidc.Config{
		ClientID: t.config.Audience, SupportedSigningAlgs: signingAlgorithms(), Now: t.config.Now,
	})
	token, err := verifier.Verify(ctx, raw)
	if errors.Is(probe.err, errProvider) {
		return bearer{}, probe.err
	}
	if err != nil {
		return bearer{}, fmt.Errorf("%.300s", strings.TrimPrefix(err.Error(), "oidc: "))
	}
	if token.Subject == "" || len(token.Subject) > maxSubject || !printable(token.Subject) {
		return bearer{}, errors.New("its subject (sub) is none of 1 to 255 printable ASCII characters")
	}
	claims := make(map[string]any)
	if err := token.Claims(&claims); err != nil {
		return bearer{}, errors.New("its claims can't be read")
	}
	b := bearer{subject: token.Subject, name: token.Subject}
	if name, ok := claims[t.config.NameClaim].(string); ok && name != "" && len(name) <= maxName && printable(name) {
		b.name = name
	}
	if b.role, err = t.roleOf(claims); err != nil {
		return bearer{}, err
	}
	return b, nil
}

// errNoRole is in the chain of the error of a good token that gives no role.
var errNoRole = errors.New("it gives no role here")

// roleOf is the highest role that the claim gives.
func (t *Tokens) roleOf(claims map[string]any) (role Role, err error) {
	value, there := claims[t.config.RoleClaim]
	if !there {
		value = inside(claims, strings.Split(t.config.RoleClaim, "."))
	}
	values, many := value.([]any)
	if !many {
		values = []any{value}
	}
	found := false
	for _, v := range values {
		text, ok := v.(string)
		if !ok {
			continue
		}
		if r, ok := t.config.Roles[text]; ok {
			role, found = max(role, r), true
		}
	}
	if !found {
		return 0, fmt.Errorf("%w: no value of its claim %s is in oidc.roles of hub.yaml", errNoRole, t.config.RoleClaim)
	}
	return role, nil
}

func inside(value any, path []string) any {
	for _, name := range path {
		object, ok := value.(map[string]any)
		if !ok {
			return nil
		}
		value = object[name]
	}
	return value
}

func printable(text string) bool {
	return !strings.ContainsFunc(text, func(c rune) bool { return c > unicode.MaxASCII || !unicode.IsPrint(c) })
}

// provider returns the provider's keys. It finds out where they are, again after a while:
// the library would keep a key for ever that it has seen once.
func (t *Tokens) provider(ctx context.Context) (oidc.KeySet, error) {
	select {
	case t.asking <- struct{}{}:
		defer func() { <-t.asking }()
	case <-ctx.Done():
		return nil, fmt.Errorf("%w in time", errProvider)
	}
	now := t.config.Now()
	if t.keys != nil && now.Sub(t.asOf) < keysLifetime && !now.Before(t.asOf) {
		return t.keys, nil
	}
	// Whoever leaves now must not keep the next one from an answer.
	ctx = oidc.ClientContext(context.WithoutCancel(ctx), t.client)
	found, err := oidc.NewProvider(ctx, t.config.Issuer)
	var where struct {
		Keys string `json:"jwks_uri"`
	}
	if err == nil {
		err = found.Claims(&where)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %.300s", errProvider, err.Error())
	}
	t.ask.forget(where.Keys) // what was asked for the former set is no answer for this one
	t.keys, t.asOf = oidc.NewRemoteKeySet(ctx, where.Keys), now
	return t.keys, nil
}

// probe remembers why the keys couldn't be had, which the library tells in words only.
type probe struct {
	oidc.KeySet
	err error
}

// VerifySignature implements oidc.KeySet.
func (p *probe) VerifySignature(ctx context.Context, jwt string) ([]byte, error) {
	payload, err := p.KeySet.VerifySignature(ctx, jwt)
	p.err = err
	return payload, err
}

// frugal asks a provider by https only, not more often than it must, and reads no more than
// it should. Every failure of it matches errProvider.
type frugal struct {
	next http.RoundTripper
	now  func() time.Time

	mu    sync.Mutex
	asked map[string]time.Time // by URL, of which there are two
}

// RoundTrip implements http.RoundTripper.
func (f *frugal) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" {
		return nil, fmt.Errorf("%w: %.200q is not https", errProvider, r.URL)
	}
	if !f.mayAsk(r.URL.String()) {
		return nil, fmt.Errorf("%w again within %s", errProvider, fetchInterval)
	}
	response, err := f.next.RoundTrip(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errProvider, err)
	}
	if response.StatusCode != http.StatusOK {
		response.Body.Close()
		return nil, fmt.Errorf("%w: %s answers %s", errProvider, r.URL.Host, response.Status)
	}
	response.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(response.Body, maxProviderBody), response.Body}
	return response, nil
}

func (f *frugal) mayAsk(address string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.now()
	if last, ok := f.asked[address]; ok && now.Sub(last) < fetchInterval && !now.Before(last) {
		return false
	}
	if len(f.asked) > 16 { // a provider that moves its keys about
		clear(f.asked)
	}
	f.asked[address] = now
	return true
}

func (f *frugal) forget(address string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.asked, address)
}

// CloseIdleConnections is what http.Client asks for.
func (f *frugal) CloseIdleConnections() {
	if c, ok := f.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

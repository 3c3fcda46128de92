package admin

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/registry"
)

// provider is an OpenID provider on loopback, over TLS.
type provider struct {
	t   *testing.T
	web *httptest.Server

	mu       sync.Mutex
	keys     []jose.JSONWebKey // that it publishes
	discover map[string]any    // its discovery document
	down     bool
	asked    map[string]int // by path
}

// signer is a key of a provider.
type signer struct {
	key jose.SigningKey
	jwk jose.JSONWebKey
}

func newSigner(t *testing.T, id string) signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signer{
		key: jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: id}},
		jwk: jose.JSONWebKey{Key: key.Public(), KeyID: id, Algorithm: "ES256", Use: "sig"},
	}
}

func newProvider(t *testing.T, keys ...signer) *provider {
	t.Helper()
	p := &provider{t: t, asked: make(map[string]int)}
	p.web = httptest.NewUnstartedServer(http.HandlerFunc(p.serve))
	p.web.Config.ErrorLog = discardLog
	p.web.StartTLS()
	t.Cleanup(p.web.Close)
	p.discover = map[string]any{
		"issuer": p.web.URL, "jwks_uri": p.web.URL + "/keys", "authorization_endpoint": p.web.URL + "/authorize", "token_endpoint": p.web.URL + "/token",
		// What a provider says of algorithms decides nothing.
		"response_types_supported": []string{"code"}, "subject_types_supported": []string{"public"}, "id_token_signing_alg_values_supported": []string{"none", "HS256", "ES256"},
	}
	p.publish(keys...)
	return p
}

func (p *provider) publish(keys ...signer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys = nil
	for _, k := range keys {
		p.keys = append(p.keys, k.jwk)
	}
}

func (p *provider) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
}

func (p *provider) times(path string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked[path]
}

func (p *provider) serve(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked[r.URL.Path]++
	if p.down {
		http.Error(w, "out of order", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		json.NewEncoder(w).Encode(p.discover)
	case "/keys":
		json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: p.keys})
	default:
		http.NotFound(w, r)
	}
}

// claims of a good token for that role, with changes; nil removes one.
func (p *provider) claims(role string, now time.Time, changes map[string]any) map[string]any {
	claims := map[string]any{
		"iss": p.web.URL, "sub": "user-" + role, "aud": "fleethub", "iat": now.Unix(), "exp": now.Add(10 * time.Minute).Unix(),
		"groups": []string{"everybody", "fleet-" + role}, "preferred_username": role + "@example.com",
	}
	maps.Copy(claims, changes)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	return claims
}

func (s signer) sign(t *testing.T, claims map[string]any) string {
	t.Helper()
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	maker, err := jose.NewSigner(s.key, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		t.Fatal(err)
	}
	signed, err := maker.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// tokenHub is a hub that takes the tokens of a provider.
type tokenHub struct {
	*hub
	provider *provider
	signer   signer
	tokens   *Tokens
	log      *lockedBuffer
	plain    *http.Client // without a certificate

	mu     sync.Mutex
	offset time.Duration // of its clock
}

// lockedBuffer is a bytes.Buffer for several goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *lockedBuffer) text() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.String()
}

func (h *tokenHub) now() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Now().Add(h.offset)
}

func (h *tokenHub) advance(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.offset += d
}

func newTokenHub(t *testing.T, change func(*Config)) *tokenHub {
	t.Helper()
	h := &tokenHub{signer: newSigner(t, "k1"), log: new(lockedBuffer)}
	h.provider = newProvider(t, h.signer)
	roots := x509.NewCertPool()
	roots.AddCert(h.provider.web.Certificate())
	var err error
	h.tokens, err = NewTokens(OIDC{
		Issuer: h.provider.web.URL, Audience: "fleethub", RoleClaim: "groups", NameClaim: "preferred_username", Roots: roots, Now: h.now,
		Roles: map[string]Role{"fleet-viewer": Viewer, "fleet-operator": Operator, "fleet-admin": Admin},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.tokens.Close)
	h.hub = newHub(t, certificateOptional, func(c *Config) {
		c.Tokens, c.Log, c.Now = h.tokens, slog.New(slog.NewTextHandler(h.log, nil)), h.now
		if change != nil {
			change(c)
		}
	})
	h.plain = h.httpClient(nil)
	return h
}

// httpClient has that certificate, or none.
func (h *hub) httpClient(credential *certtest.Credential) *http.Client {
	config := &tls.Config{MinVersion: tls.VersionTLS13}
	if credential != nil {
		config = credential.ClientConfig()
	}
	config.RootCAs = x509.NewCertPool()
	config.RootCAs.AddCert(h.pki.Root.Certificate())
	transport := &http.Transport{TLSClientConfig: config}
	h.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func (h *tokenHub) token(role string, changes map[string]any) string {
	return h.signer.sign(h.t, h.provider.claims(role, h.now(), changes))
}

// ask makes a request with these Authorization headers and returns its status and problem.
func (h *tokenHub) ask(client *http.Client, method, path, body string, authorization ...string) (int, http.Header, Problem) {
	h.t.Helper()
	r, err := http.NewRequestWithContext(h.t.Context(), method, h.url+path, strings.NewReader(body))
	h.must(err)
	r.Header.Set("Content-Type", "application/json")
	r.Header["Authorization"] = authorization
	response, err := client.Do(r)
	h.must(err)
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	h.must(err)
	var p Problem
	if response.StatusCode != http.StatusOK {
		h.must(json.Unmarshal(content, &p))
	}
	for _, a := range authorization {
		if raw := strings.TrimPrefix(a, "Bearer "); len(raw) > 20 && (strings.Contains(string(content), raw) || strings.Contains(h.log.text(), raw)) {
			h.t.Errorf("%s %s: the token is in the answer or in the log", method, path)
		}
	}
	return response.StatusCode, response.Header, p
}

func TestTokenOpensWhatItsRoleMay(t *testing.T) {
	h := newTokenHub(t, nil)
	if _, err := h.admin("ann").Import(t.Context(), h.manifest("pi-1", "pi-2")); err != nil {
		t.Fatal(err)
	}
	client := func(token string) *Client {
		c, err := NewTokenClient(h.url, []*x509.Certificate{h.pki.Root.Certificate()}, token)
		h.must(err)
		t.Cleanup(c.Close)
		return c
	}
	viewer, operator := client(h.token("viewer", nil)), client(h.token("operator", nil))
	if page, err := viewer.Devices(t.Context(), "", 0); err != nil || len(page.Devices) != 2 {
		t.Errorf("a viewer's list: %+v, %v", page, err)
	}
	if _, err := viewer.Revoke(t.Context(), "pi-1", revocation.KeyCompromise); err == nil || !strings.Contains(err.Error(), "viewer@example.com is viewer by the claim groups") || !strings.Contains(err.Error(), "fleet-operator") {
		t.Errorf("a viewer revokes: %v", err)
	}
	receipt, err := operator.Revoke(t.Context(), "pi-1", revocation.KeyCompromise)
	if want := "oidc:" + h.provider.web.URL + "#user-operator"; err != nil || receipt.Actor != want {
		t.Errorf("receipt %+v, %v, want actor %s", receipt, err, want)
	}
	records, err := viewer.AuditWhere(t.Context(), registry.AuditQuery{Action: "device.revoke"})
	if err != nil || len(records.Records) != 1 || records.Records[0].Actor != receipt.Actor || records.Records[0].Address == "" {
		t.Errorf("audit %+v, %v", records, err)
	}
	if n := h.provider.times("/keys"); n != 1 {
		t.Errorf("the keys were asked for %d times", n)
	}
}

func TestTokenThatIsNotGoodOpensNothing(t *testing.T) {
	h := newTokenHub(t, nil)
	other := newSigner(t, "k1") // the same ID, another key
	unknown := newSigner(t, "k2")
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	h.must(err)
	public, err := x509.MarshalPKIXPublicKey(h.signer.jwk.Key)
	h.must(err)
	shared := signer{key: jose.SigningKey{Algorithm: jose.HS256, Key: jose.JSONWebKey{Key: public, KeyID: "k1"}}}
	wrongKind := signer{key: jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: crypto.PrivateKey(rsaKey), KeyID: "k1"}}}
	good := h.token("admin", nil)
	parts := strings.Split(good, ".")
	encode := func(v any) string {
		data, err := json.Marshal(v)
		h.must(err)
		return base64.RawURLEncoding.EncodeToString(data)
	}
	claims := h.provider.claims("admin", h.now(), nil)
	raised := h.provider.claims("admin", h.now(), map[string]any{"sub": "somebody else"})

	for name, tt := range map[string]struct {
		authorization []string
		status        int
		code, say     string
	}{
		"good":                    {[]string{"Bearer " + good}, 200, "", ""},
		"good, in small letters":  {[]string{"bearer " + good}, 200, "", ""},
		"expired":                 {[]string{"Bearer " + h.token("admin", map[string]any{"exp": h.now().Add(-time.Second).Unix()})}, 401, codeToken, "expired"},
		"without an end":          {[]string{"Bearer " + h.token("admin", map[string]any{"exp": nil})}, 401, codeToken, "expired"},
		"for later":               {[]string{"Bearer " + h.token("admin", map[string]any{"nbf": h.now().Add(time.Hour).Unix()})}, 401, codeToken, "nbf"},
		"for another service":     {[]string{"Bearer " + h.token("admin", map[string]any{"aud": "billing"})}, 401, codeToken, "audience"},
		"for nobody":              {[]string{"Bearer " + h.token("admin", map[string]any{"aud": nil})}, 401, codeToken, "audience"},
		"for several, us too":     {[]string{"Bearer " + h.token("admin", map[string]any{"aud": []string{"billing", "fleethub"}})}, 200, "", ""},
		"of another issuer":       {[]string{"Bearer " + h.token("admin", map[string]any{"iss": "https://elsewhere.example"})}, 401, codeToken, "issued by a different provider"},
		"of no issuer":            {[]string{"Bearer " + h.token("admin", map[string]any{"iss": nil})}, 401, codeToken, "provider"},
		"of nobody":               {[]string{"Bearer " + h.token("admin", map[string]any{"sub": ""})}, 401, codeToken, "sub"},
		"of a subject with lines": {[]string{"Bearer " + h.token("admin", map[string]any{"sub": "a\nb"})}, 401, codeToken, "sub"},
		"of a long subject":       {[]string{"Bearer " + h.token("admin", map[string]any{"sub": strings.Repeat("x", 256)})}, 401, codeToken, "sub"},
		"without a role":          {[]string{"Bearer " + h.token("admin", map[string]any{"groups": nil})}, 403, codeRole, "groups"},
		"with a role unheard of":  {[]string{"Bearer " + h.token("admin", map[string]any{"groups": []string{"admin", "Fleet-Admin"}})}, 403, codeRole, "groups"},
		"with a role that counts": {[]string{"Bearer " + h.token("admin", map[string]any{"groups": []any{1, true, map[string]any{"fleet-admin": 1}}})}, 403, codeRole, "groups"},
		"with one role":           {[]string{"Bearer " + h.token("admin", map[string]any{"groups": "fleet-admin"})}, 200, "", ""},
		"by no algorithm":         {[]string{"Bearer " + encode(map[string]string{"alg": "none"}) + "." + encode(claims) + "."}, 401, codeToken, ""},
		"by a shared secret":      {[]string{"Bearer " + shared.sign(t, claims)}, 401, codeToken, "algorithm"},
		"by another kind of key":  {[]string{"Bearer " + wrongKind.sign(t, claims)}, 401, codeToken, "signature"},
		"by another key":          {[]string{"Bearer " + other.sign(t, claims)}, 401, codeToken, "signature"},
		"by an unknown key":       {[]string{"Bearer " + unknown.sign(t, claims)}, 401, codeToken, "signature"},
		"changed":                 {[]string{"Bearer " + parts[0] + "." + encode(raised) + "." + parts[2]}, 401, codeToken, "signature"},
		"without a signature":     {[]string{"Bearer " + parts[0] + "." + parts[1] + "."}, 401, codeToken, ""},
		"in two parts":            {[]string{"Bearer " + parts[0] + "." + parts[1]}, 401, codeToken, ""},
		"too long":                {[]string{"Bearer " + good + strings.Repeat("A", maxToken)}, 401, codeToken, "octets"},
		"as JSON":                 {[]string{`Bearer {"payload":"` + parts[1] + `"}`}, 401, codeToken, "Bearer TOKEN"},
		"as a password":           {[]string{"Basic YW5uOnNlY3JldA=="}, 401, codeToken, "Bearer TOKEN"},
		"twice":                   {[]string{"Bearer " + good, "Bearer " + good}, 401, codeToken, "Bearer TOKEN"},
		"empty":                   {[]string{"Bearer "}, 401, codeToken, "Bearer TOKEN"},
		"not there":               {nil, 401, codeToken, "neither"},
	} {
		h.advance(fetchInterval) // so that a key which isn't known may be asked for
		status, header, p := h.ask(h.plain, "GET", "/v1/devices", "", tt.authorization...)
		if status != tt.status || tt.code != "" && p.Type != problemType+tt.code || !strings.Contains(p.Detail, tt.say) || strings.ContainsRune(p.Detail, '\n') {
			t.Errorf("%s: %d %+v, want %d %s", name, status, p, tt.status, tt.say)
		}
		if (status == http.StatusUnauthorized) != (header.Get("WWW-Authenticate") != "") {
			t.Errorf("%s: %d with WWW-Authenticate %q", name, status, header.Get("WWW-Authenticate"))
		}
	}
}

func TestTokenAndCertificateTogetherAreRefused(t *testing.T) {
	h := newTokenHub(t, nil)
	for name, credential := range map[string]certtest.Credential{
		"operator": h.pki.Operator("ann", certtest.WithOU("admin")), "device": h.pki.Device("pi-1"), "foreign": h.pki.Foreign().Operator("ann"),
	} {
		status, _, p := h.ask(h.httpClient(&credential), "GET", "/v1/devices", "", "Bearer "+h.token("admin", nil))
		if status != http.StatusForbidden || p.Type != problemType+"two-identities" {
			t.Errorf("%s: %d %+v", name, status, p)
		}
	}
	// The station's own endpoint makes no exception.
	station := h.pki.Device("pi-1")
	if status, _, _ := h.ask(h.httpClient(&station), "POST", manifestsPath, "x", "Bearer x.y.z"); status != http.StatusForbidden {
		t.Errorf("a manifest: %d", status)
	}
}

func TestHubWithoutAProviderTakesNoTokens(t *testing.T) {
	with := newTokenHub(t, nil)
	h := &tokenHub{hub: newHub(t, certificateOptional, nil), log: new(lockedBuffer)}
	if status, _, p := h.ask(h.httpClient(nil), "GET", "/v1/devices", "", "Bearer "+with.token("admin", nil)); status != http.StatusUnauthorized || !strings.Contains(p.Detail, "takes no tokens") {
		t.Errorf("%d %+v", status, p)
	}
}

func TestKeysOfTheProviderChange(t *testing.T) {
	h := newTokenHub(t, nil)
	former := h.token("viewer", map[string]any{"exp": h.now().Add(time.Hour).Unix()})
	works := func(when, token string, want int) {
		t.Helper()
		if status, _, p := h.ask(h.plain, "GET", "/v1/devices", "", "Bearer "+token); status != want {
			t.Errorf("%s: %d %+v, want %d", when, status, p, want)
		}
	}
	works("at first", former, 200)
	next := newSigner(t, "k2")
	h.provider.publish(h.signer, next)
	h.advance(fetchInterval)
	works("by a new key", next.sign(t, h.provider.claims("viewer", h.now(), nil)), 200)
	works("by the former, which is still published", former, 200)
	h.provider.publish(next)
	works("by the former, within the time keys are kept", former, 200)
	h.advance(keysLifetime)
	works("by the former, which was taken back", former, 401)
	works("by the new one", next.sign(t, h.provider.claims("viewer", h.now(), nil)), 200)
	// Whoever makes up keys doesn't have the provider asked for each.
	before := h.provider.times("/keys")
	for range 20 {
		works("by a key made up", newSigner(t, rand.Text()).sign(t, h.provider.claims("viewer", h.now(), nil)), 503)
	}
	if n := h.provider.times("/keys") - before; n > 1 {
		t.Errorf("the provider was asked %d times", n)
	}
}

func TestProviderThatCannotBeAskedOpensNothing(t *testing.T) {
	h := newTokenHub(t, nil)
	ask := func() (int, Problem) {
		status, _, p := h.ask(h.plain, "GET", "/v1/devices", "", "Bearer "+h.token("admin", nil))
		return status, p
	}
	h.provider.set(func() { h.provider.down = true })
	if status, p := ask(); status != 503 || p.Type != problemType+codeProvider {
		t.Errorf("a provider that is down: %d %+v", status, p)
	}
	h.provider.set(func() { h.provider.down = false })
	if status, _ := ask(); status != 503 {
		t.Errorf("asked again at once: %d", status)
	}
	h.advance(fetchInterval)
	if status, p := ask(); status != 200 {
		t.Errorf("a provider that is back: %d %+v", status, p)
	}
	h.provider.set(func() { h.provider.down = true })
	if status, p := ask(); status != 200 {
		t.Errorf("a provider that has just gone: %d %+v", status, p)
	}
	h.advance(keysLifetime)
	if status, _ := ask(); status != 503 {
		t.Errorf("a provider that has been gone for long: %d", status)
	}
	h.provider.set(func() { h.provider.down = false; h.provider.discover["issuer"] = "https://elsewhere.example" })
	h.advance(fetchInterval)
	if status, p := ask(); status != 503 {
		t.Errorf("a provider that says that it is another: %d %+v", status, p)
	}
	h.provider.set(func() {
		h.provider.discover["issuer"] = h.provider.web.URL
		h.provider.discover["jwks_uri"] = "http://127.0.0.1:1/keys"
	})
	h.advance(fetchInterval)
	if status, p := ask(); status != 503 || !strings.Contains(p.Detail, "not https") {
		t.Errorf("keys in the clear: %d %+v", status, p)
	}
	h.provider.web.Close()
	h.advance(keysLifetime)
	if status, p := ask(); status != 503 {
		t.Errorf("a provider that is off: %d %+v", status, p)
	}
	// A certificate needs no provider.
	if _, err := h.admin("ann").Devices(t.Context(), "", 0); err != nil {
		t.Errorf("an operator's certificate meanwhile: %v", err)
	}
}

func TestWatchEndsWithItsToken(t *testing.T) {
	h := newTokenHub(t, func(c *Config) {
		c.Heartbeat = time.Millisecond
		c.Watch = newFeed().watch
	})
	c, err := NewTokenClient(h.url, []*x509.Certificate{h.pki.Root.Certificate()}, h.token("viewer", nil))
	h.must(err)
	t.Cleanup(c.Close)
	ended := make(chan error, 1)
	go func() { ended <- c.Watch(t.Context(), "#", func(Message) error { return nil }) }()
	h.advance(time.Hour)
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("the watch ended with %v", err)
	}
}

func TestProviderIsNamedWell(t *testing.T) {
	good := OIDC{Issuer: "https://login.example/realm", Audience: "fleethub", RoleClaim: "groups", Roles: map[string]Role{"ops": Admin}}
	for name, tt := range map[string]struct {
		change func(*OIDC)
		say    string
	}{
		"good":         {func(*OIDC) {}, ""},
		"in the clear": {func(c *OIDC) { c.Issuer = "http://login.example" }, "oidc.issuer"},
		"no address":   {func(c *OIDC) { c.Issuer = "login" }, "oidc.issuer"},
		"with a query": {func(c *OIDC) { c.Issuer += "?x=1" }, "oidc.issuer"},
		"no audience":  {func(c *OIDC) { c.Audience = "" }, "oidc.audience"},
		"no claim":     {func(c *OIDC) { c.RoleClaim = "" }, "oidc.role_claim"},
		"no roles":     {func(c *OIDC) { c.Roles = nil }, "oidc.roles"},
	} {
		config := good
		tt.change(&config)
		if _, err := NewTokens(config); (err == nil) != (tt.say == "") || err != nil && !strings.Contains(err.Error(), tt.say) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRoleIsFoundInsideAClaim(t *testing.T) {
	roles := map[string]Role{"low": Viewer, "mid": Operator, "high": Admin}
	for _, tt := range []struct {
		claim, claims string
		want          Role
		found         bool
	}{
		{"role", `{"role":"mid"}`, Operator, true},
		{"role", `{"role":["low","high","mid"]}`, Admin, true},
		{"role", `{"role":"low mid"}`, 0, false},
		{"role", `{"role":null}`, 0, false},
		{"a.b", `{"a":{"b":["mid"]}}`, Operator, true},
		{"a.b", `{"a.b":"low","a":{"b":["mid"]}}`, Viewer, true},
		{"a.b", `{"a":["b"]}`, 0, false},
		{"a.b", `{}`, 0, false},
		{"https://example.com/role", `{"https://example.com/role":"high"}`, Admin, true},
	} {
		var claims map[string]any
		if err := json.Unmarshal([]byte(tt.claims), &claims); err != nil {
			t.Fatal(err)
		}
		role, err := (&Tokens{config: OIDC{RoleClaim: tt.claim, Roles: roles}}).roleOf(claims)
		if role != tt.want || (err == nil) != tt.found {
			t.Errorf("%s in %s: %s, %v", tt.claim, tt.claims, role, err)
		}
	}
	if !slices.Equal(roleNames, []string{"viewer", "operator", "admin"}) {
		t.Error("the roles have other names")
	}
}

package issuance_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"math/big"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/issuance"
)

func newKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newRSAKey(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// coordinates returns those of the key's point.
func coordinates(t testing.TB, key *ecdsa.PrivateKey) (x, y *big.Int) {
	t.Helper()
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	half := (len(point) - 1) / 2
	return new(big.Int).SetBytes(point[1 : 1+half]), new(big.Int).SetBytes(point[1+half:])
}

// unchecked returns the key of any two numbers, on the curve or off.
func unchecked(curve elliptic.Curve, x, y *big.Int) *ecdsa.PublicKey {
	//lint:ignore SA1019 every other way refuses a bad point, and these are to reach CheckKey
	return &ecdsa.PublicKey{Curve: curve, X: x, Y: y}
}

// ownCurve says it is P-256.
type ownCurve struct{ elliptic.Curve }

func TestOnlyP256AndP384KeysAreCertified(t *testing.T) {
	t.Parallel()
	p256, p384 := newKey(t, elliptic.P256()), newKey(t, elliptic.P384())
	edKey, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x, y := coordinates(t, p256)
	for _, c := range []struct {
		name string
		key  crypto.PublicKey
		good bool
	}{
		{"P-256", p256.Public(), true},
		{"P-384", p384.Public(), true},
		{"P-224", newKey(t, elliptic.P224()).Public(), false},
		{"P-521", newKey(t, elliptic.P521()).Public(), false},
		{"RSA 2048", newRSAKey(t).Public(), false},
		{"Ed25519", edKey, false},
		{"nothing", nil, false},
		{"no curve", &ecdsa.PublicKey{}, false},
		{"another implementation of P-256", unchecked(ownCurve{elliptic.P256()}, x, y), false},
		{"private key", p256, false},
	} {
		if err := issuance.CheckKey(c.key); (err == nil) != c.good {
			t.Errorf("%s: %v, want good: %t", c.name, err, c.good)
		} else if err != nil && !errors.Is(err, issuance.ErrKey) {
			t.Errorf("%s: %v is no ErrKey", c.name, err)
		}
	}
}

func TestPointsOffTheCurveAreRefused(t *testing.T) {
	t.Parallel()
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384()} {
		x, y := coordinates(t, newKey(t, curve))
		foreign, _ := coordinates(t, newKey(t, elliptic.P521()))
		p := curve.Params().P
		for name, point := range map[string][2]*big.Int{
			"Y + 1":            {x, new(big.Int).Add(y, big.NewInt(1))},
			"swapped":          {y, x},
			"infinity":         {new(big.Int), new(big.Int)},
			"X + p":            {new(big.Int).Add(x, p), y},
			"Y - p":            {x, new(big.Int).Sub(y, p)},
			"negative":         {new(big.Int).Neg(x), y},
			"far too long":     {new(big.Int).Lsh(x, 4096), y},
			"of another curve": {foreign, y},
		} {
			if err := issuance.CheckKey(unchecked(curve, point[0], point[1])); !errors.Is(err, issuance.ErrKey) {
				t.Errorf("%s, %s: %v, want ErrKey", curve.Params().Name, name, err)
			}
		}
	}
}

func TestKnownBadKeysAreRefused(t *testing.T) {
	t.Parallel()
	published := map[elliptic.Curve]string{ // RFC 6979 A.2.5 and A.2.6
		elliptic.P256(): "C9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721",
		elliptic.P384(): "6B9D3DAD2E1B8C1C05B19875B6659F4DE23C3B667BF297BA9AA47740787137D896D5724E4C70A825F872C9EA60D2EDF5",
	}
	for curve, hex := range published {
		t.Run(curve.Params().Name, func(t *testing.T) {
			t.Parallel()
			printed, ok := new(big.Int).SetString(hex, 16)
			if !ok {
				t.Fatal("the published key is malformed")
			}
			scalars := []*big.Int{printed}
			for n := range int64(256) {
				scalars = append(scalars, big.NewInt(n+1))
			}
			for _, d := range scalars {
				for _, d := range []*big.Int{d, new(big.Int).Sub(curve.Params().N, d)} {
					key, err := ecdsa.ParseRawPrivateKey(curve, d.FillBytes(make([]byte, (curve.Params().BitSize+7)/8)))
					if err != nil {
						t.Fatal(err)
					}
					if err := issuance.CheckKey(key.Public()); !errors.Is(err, issuance.ErrKey) || !strings.Contains(err.Error(), "publicly known") {
						t.Errorf("scalar %x: %v, want ErrKey", d, err)
					}
					if _, err := issuance.NewCSR(key, "a"); !errors.Is(err, issuance.ErrKey) {
						t.Errorf("scalar %x: NewCSR: %v, want ErrKey", d, err)
					}
				}
			}
			if err := issuance.CheckKey(newKey(t, curve).Public()); err != nil {
				t.Errorf("a random key: %v", err)
			}
		})
	}
}

func TestSerialNumbersAre16OctetsAnd126RandomBits(t *testing.T) {
	t.Parallel()
	const draws = 4096
	seen := make(map[string]bool, draws)
	ones := make([]int, 128)
	for range draws {
		s, err := issuance.NewSerial()
		if err != nil {
			t.Fatal(err)
		}
		if s.Sign() <= 0 || len(s.Bytes()) != 16 || s.BitLen() != 127 {
			t.Fatalf("serial number %x: sign %d, %d bits", s, s.Sign(), s.BitLen())
		}
		if seen[s.String()] {
			t.Fatalf("serial number %x came twice", s)
		}
		seen[s.String()] = true
		for bit := range ones {
			ones[bit] += int(s.Bit(bit))
		}
	}
	for bit, n := range ones[:126] {
		if n < draws*2/5 || n > draws*3/5 { // 13 standard deviations
			t.Errorf("bit %d was set in %d of %d serial numbers", bit, n, draws)
		}
	}
}
